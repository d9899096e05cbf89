// An app on Azure App Service for Linux, in a container that has the agent in
// front of its command (see ../docker/README.md).
//
//   az deployment group create -g my-group -f deploy/azure/main.bicep \
//     -p name=my-shop image=myregistry.azurecr.io/shop:1 relay=https://relay.example.com token=…

@description('Name of the app; also the first label of its azurewebsites.net address.')
param name string

@description('The image of the app, its entry point being: postern run --')
param image string

@description('URL of the relay.')
param relay string

@description('Made on the relay with: postern-relay token create --app NAME')
@secure()
param token string

@description('Port on which the app listens in the container.')
param port int = 3000

@description('B1 is the smallest plan that can be always on.')
param sku string = 'B1'

param location string = resourceGroup().location

// From SIGTERM to SIGKILL, in seconds. The default is 5, the limit 120.
var grace = 120

resource plan 'Microsoft.Web/serverfarms@2023-12-01' = {
  name: '${name}-plan'
  location: location
  kind: 'linux'
  sku: {
    name: sku
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2023-12-01' = {
  name: name
  location: location
  kind: 'app,linux,container'
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    siteConfig: {
      linuxFxVersion: 'DOCKER|${image}'
      // Without it the app is stopped after 20 minutes without requests through
      // Azure; what comes through a tunnel is none.
      alwaysOn: true
      webSocketsEnabled: true
      http20Enabled: true
      minTlsVersion: '1.2'
      appSettings: [
        {
          name: 'POSTERN_RELAY'
          value: relay
        }
        {
          name: 'POSTERN_TOKEN'
          value: token
        }
        {
          name: 'POSTERN_GRACE'
          value: '${grace}s'
        }
        {
          name: 'PORT'
          value: string(port)
        }
        {
          name: 'WEBSITES_PORT'
          value: string(port)
        }
        {
          name: 'WEBSITES_CONTAINER_START_TIME_LIMIT'
          value: '230'
        }
        {
          name: 'WEBSITES_CONTAINER_STOP_TIME_LIMIT'
          value: string(grace)
        }
        {
          name: 'WEBSITES_ENABLE_APP_SERVICE_STORAGE'
          value: 'false'
        }
      ]
    }
  }
}

output url string = 'https://${app.properties.defaultHostName}'
